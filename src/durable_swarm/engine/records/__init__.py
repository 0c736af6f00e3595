"""What is stored in the database, as pure data: names, encode, decode. No I/O, no threads."""
