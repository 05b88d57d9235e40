"""What a user installs: the wheel, the source package, the types, and the project's own automation."""
