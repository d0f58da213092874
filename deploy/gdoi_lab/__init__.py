"""The lab kit: a kernel that can hold ESP SAs, a small network in it, traffic and its accounting.

========== ==================================================================================
errors     ``LabError``: one sentence for the operator, no traceback
checkout   where the source tree, its virtual environment and its programs are
kernel     ``run_in_kernel``: run a command on this host's kernel or on User Mode Linux
uml        the User Mode Linux side of that; ``fpu`` fits its binary to processors it predates
net        ``Network``: namespaces joined by a bridge; ``Host``, ``Process``, ``wait_until``
prefork    starts our programs by a fork, without importing them again
capture    ``Capture``: tcpdump on the bridge, known to run and known to have lost nothing
traffic    a multicast sender and receiver per member, and ``Traffic`` which drives them
clear      counts what a capture shows in clear and in ESP
table      the scenarios' table; ``scenarios`` is the command that runs them and prints it
suite      what ``deploy/test`` runs; ``sharing`` divides tests among several pytest processes
========== ==================================================================================
"""
