"""Where engines run: this machine, later boards over SSH, and a scripted fake."""
