"""What every other part leans on: errors, files, pictures, progress, and the machine."""
