"""Speed, one file a subject. Whatever is compared is timed in one run, in turns: machines are noisy."""
