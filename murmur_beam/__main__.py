"""``python -m murmur_beam``: the same as the ``murmur`` command."""

from murmur_beam.cli import main

raise SystemExit(main())
