"""The entity service: types, entities, and the log of every namespace but ``system``.

It promises what ``strandline.entity.v1`` says: dense revisions, durable writes decided under the namespace's lock,
reads that state their revision, lists that walk one range and examine at most 10,000 entities. It verifies who calls
and never issues identity; it calls only the user service (access rules, public keys).

The path of a write: ``api`` parses it into ``mutations``, ``writes`` checks the content against the type and hands it
to the committer, ``ledger`` decides it under the lock, ``store`` holds the SQL.
"""
