"""Ways for stock models of other libraries to run on `attend`, one library a file, each imported when used."""
