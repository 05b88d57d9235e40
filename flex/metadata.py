"""Makes the metadata of the Flex Templates of the flags of their programs.

    python flex/metadata.py

writes ``NAME.metadata.json`` beside itself; run it after a change of flags.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from murmur_beam.programs import merge_files, pubsub

TEMPLATES = {"merge_files": merge_files.command_line, "pubsub": pubsub.command_line}
"""The parser of each program that has a template."""

ABOUT: dict[str, dict[str, Any]] = {
    "merge_files": {
        "name": "murmur_beam: files to Bigtable",
        "description": "Folds JSON Lines or CSV files into counters in Bigtable, each event exactly once, however "
        "often it is run.",
        "streaming": False,
    },
    "pubsub": {
        "name": "murmur_beam: Pub/Sub to Bigtable",
        "description": "Folds the messages of a Pub/Sub subscription into counters in Bigtable, each event exactly "
        "once. At-least-once mode of Dataflow is as exact and costs less.",
        "streaming": True,
        "supportsAtLeastOnce": True,
        "supportsExactlyOnce": True,
        "defaultStreamingMode": "EXACTLY_ONCE",
    },
}

LEFT_OUT = {"help": "no flag of a job", "cache": "a copy exists in one process, and a worker's is never read"}
"""Flags without a parameter, and why."""

REQUIRED = {
    "merge_files": ("input", "store", "key", "dead_letters"),
    "pubsub": ("subscription", "store", "key", "dead_letter_topic"),
}
"""Parameters without which no job of the template can run."""

TOPIC = r"^projects/[^/]+/topics/[^/]+$"
DURATION = "[0-9]+(ms|s|m|h|d|w)"
FORMS = {
    "N": ("NUMBER", "^[1-9][0-9]*$"),
    "N|P%": ("TEXT", "^[0-9]+([.][0-9]+)?%?$"),
    "DURATION": ("TEXT", f"^{DURATION}$"),
    "WINDOW": ("TEXT", f"^(daily|hourly|minute|{DURATION})$"),
    "SHARE": ("TEXT", "^(0|1|0[.][0-9]+)$"),
    "CHAR": ("TEXT", r'^([^"\s]|tab|\\t)$'),
    "MONOID": ("TEXT", r"^[A-Za-z_]\w*([.\w]*:\w+)?(\(.*\))?$"),
    "FORMAT": ("TEXT", r"^(json|csv|[A-Za-z_][.\w]*:\w+)$"),
}
"""Kind and form of a parameter, by the metavar of its flag."""

PLACES = {
    "store": ("TEXT", r"^bigtable://[^/?#]+/[^/?#]+/[^/?#]+(\?[^#]+)?$"),
    "input": ("TEXT", r"^gs://[^|]+(\|gs://[^|]+)*$"),
    "subscription": ("PUBSUB_SUBSCRIPTION", r"^projects/[^/]+/subscriptions/[^/]+$"),
    "topic": ("PUBSUB_TOPIC", TOPIC),
    "dead_letter_topic": ("PUBSUB_TOPIC", TOPIC),
    "dead_letters": ("GCS_WRITE_FILE", r"^gs://[^/]+/.*[^/]$"),
}
"""Kind and form of a place that the workers of a job can reach."""

HINTS = {
    "store": "On Dataflow a Bigtable table, which murmur create-table makes, such as "
    "bigtable://my-project/my-instance/views?app_profile=murmur.",
    "input": "On Dataflow such as gs://my-bucket/events/*.jsonl.gz. Several have a | between them.",
    "key": "Several have a | between them: page/{page}|user/{user}|=all.",
    "dead_letters": "On Dataflow in Cloud Storage, such as gs://my-bucket/dead.",
}
"""What only a template's user must know."""


def metadata(program: str) -> dict[str, Any]:
    """The metadata of a template."""
    actions = {action.dest: action for action in TEMPLATES[program]()._actions if action.dest not in LEFT_OUT}
    required = [name for name in REQUIRED[program] if name in actions]
    names = [*required, *(name for name in actions if name not in required)]
    return {
        **ABOUT[program],
        "parameters": [_parameter(program, actions[name], name not in required) for name in names],
    }


def _parameter(program: str, action: argparse.Action, is_optional: bool) -> dict[str, Any]:
    name = action.dest
    text = (action.help or "") % vars(action)
    if text.split(":")[0] not in (action.choices or ()):
        text = text[:1].upper() + text[1:]
    kind, form = PLACES.get(name) or FORMS.get(str(action.metavar), ("TEXT", None))
    if action.choices:
        form = f"^({'|'.join(action.choices)})$"
    if (program, name) == ("pubsub", "dead_letters"):
        kind = "GCS_WRITE_FOLDER"
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": " ".join(filter(None, [f"{text}.", HINTS.get(name)])),
        "isOptional": is_optional,
        "paramType": kind,
        **({"regexes": [form]} if form else {}),
    }


def text_of(program: str) -> str:
    """The text of a template's file."""
    return json.dumps(metadata(program), indent=2) + "\n"


if __name__ == "__main__":
    for program in TEMPLATES:
        Path(__file__).with_name(f"{program}.metadata.json").write_text(text_of(program), "utf-8")
