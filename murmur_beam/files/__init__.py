"""Files of records and of dead letters: finding, decompressing and splitting them."""
