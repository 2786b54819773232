"""AdaSR: language models that think while they read, trained with HRPO."""
