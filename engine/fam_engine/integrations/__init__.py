"""Other tools' plug-ins, one file each: our models under the names and contracts of their hosts.

What may come in here: what a host imports or calls, and nothing that works without its host. Each file may import its
host at the top; so nothing of ours imports these files but the command that starts the host.
"""
