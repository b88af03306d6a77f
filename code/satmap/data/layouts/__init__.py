"""The directory layouts of the challenges, one file each."""
