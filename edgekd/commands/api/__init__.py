"""What the command line and Python programs call: what users write goes in, frozen results come out.

`edgekd` itself exports the functions; each module here is the counterpart of one of `edgekd.cli`. They import what they
need when they are called.
"""
