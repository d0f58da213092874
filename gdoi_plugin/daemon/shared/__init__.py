"""Several key servers for the same groups, with their state in one PostgreSQL database.

``schema``    tables beside the store's: the head, what changed lately, the lease, the servers.
``database``  connections that give up in time.
``store``     a step of the engine as one transaction, which begins with what others have changed.
``policies``  what each group is to be; who was told something else hands out nothing of it.
``lease``     who leads: one at a time, by beats that everybody times with a clock of its own.
``servers``   the daemon's side: the loop that beats, follows and takes over.

Every step that may hand out a key or change anything holds the lock of the head from its beginning
to its commit, and begins with what others have committed before: so there is one order of steps,
and a KEK, a SEQ, a leaf or a Sender-ID that one server has used is used for no other server's step.
The leader alone sends rekeys and runs timers; an epoch that another server opens, for a newcomer or
an operator, is said by the leader, which finds it in the database.
"""
