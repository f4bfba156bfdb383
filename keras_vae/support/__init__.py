"""What every other part uses: errors, files, pictures, progress, and the machine."""
