"""Each built-in technique against its twin, against other libraries, and against numbers worked out by hand."""
