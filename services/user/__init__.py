"""The user service: who people are and what they may do.

Owns users, credentials, sessions, namespaces (tenants), memberships, the audit trail, the keys that make personal data
readable, and the log of the reserved namespace ``system``.

Promises: answers never tell whether an address is registered; a refresh token has at most one living successor; every
change of a user, namespace, membership or ended session is a unit of ``system`` that holds ids only; addresses and
names are stored encrypted under a key of their own per user, findable by a keyed hash of the address alone.

Calls: the entity service, to remove the data of a deleted namespace; an SMTP server, to deliver mail.

An address belongs to whoever *verified* it first. Until then every registration stands alone, with its own password and
its own mailed token, so that a second registrant can neither replace the password of the first nor learn of it; the
others vanish when one is verified.
"""
