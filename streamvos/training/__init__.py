"""Training: losses, clips, a loop that resumes, and one recipe per method."""
