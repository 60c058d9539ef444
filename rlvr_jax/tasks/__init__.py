"""What is trained and measured on: synthetic families, files of problems, prompts, and which problem comes when."""
