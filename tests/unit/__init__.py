"""Tests of plain functions and classes, without Beam, stores or emulators."""
