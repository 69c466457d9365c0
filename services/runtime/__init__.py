"""What every process needs, and nothing that belongs to one service.

Errors and their one table to gRPC, the life of a server, the call context, who may call what, the database, the bus,
the committer with the log it writes, and the filter language. It knows the protos, but no service.
"""
