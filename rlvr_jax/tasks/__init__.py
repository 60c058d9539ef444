"""What is trained and measured on: the synthetic task, files of problems, prompts, and which problem comes when."""
