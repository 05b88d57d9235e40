"""``python -m murmur_beam``: the same as the ``murmur`` command."""

from murmur_beam.cli.main import main

raise SystemExit(main())
