"""`fasttune board`: all series and runs in a browser, live, on this machine alone."""
