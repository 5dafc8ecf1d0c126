"""The command line: data on stdout, diagnostics on stderr, `-o json` everywhere."""
