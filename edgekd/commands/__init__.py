"""What edgekd does, one file for each command."""
