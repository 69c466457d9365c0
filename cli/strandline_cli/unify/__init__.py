"""Several sources of the same things made into one set of entities, each field keeping its source.

A plan (``plan``) names the sources, SQL over files and databases (``sources``), rules that say which of their rows are
the same thing (``match``), and rules that make one entity of them (``merge``). What the rules cannot tell goes to a
file for people to decide (``review``), never into the entities. The same input gives the same bytes.
"""
