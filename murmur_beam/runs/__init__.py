"""What programs share: command lines, progress and outcomes on the terminal, exit codes, runs of Beam pipelines."""
