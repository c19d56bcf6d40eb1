"""The tables as this version of Limner knows them. `migrations/` brings databases here; tests compare."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

VERSION_TABLE = "limner_version"  # one row: the newest migration that was run
VERSION = "1"  # the newest there is
metadata = MetaData()

# Texts that hold JSON are Text: Limner reads and writes them as they are, and PostgreSQL's own types refuse
# the NUL character that a prompt may contain.
jobs = Table(
    "jobs",
    metadata,
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),  # order of arrival
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("request", Text, nullable=False),  # JSON
    Column("model", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("cost", Double, nullable=False),
    Column("parent", String(64)),
    Column("action", String(64)),
    Column("index", Integer),
    Column("metadata", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("turn", Double, nullable=False),  # the queue is in order of (turn, number); see serve/queue.py
    Column("attempts", Integer, nullable=False),  # begun so often; never goes down
    Column("strikes", Integer, nullable=False),  # given back so often for what may be its fault
    Column("worker", Text),  # who runs it, or ran it last
    Column("claim", String(32)),  # by which call it was handed out
    Column("progress", Double, nullable=False),
    Column("stage", Text, nullable=False),
    Column("cancel", Boolean, nullable=False),
    Column("seeds", Text, nullable=False),  # JSON
    Column("notices", Text, nullable=False),  # JSON
    Column("warnings", Text, nullable=False),  # JSON
    Column("code", String(32)),  # of the failure
    Column("message", Text),  # of the failure
    Column("created", Double, nullable=False),  # seconds since 1970
    Column("started", Double),
    Column("ended", Double),
    Index("jobs_in_order", "state", "turn", "number"),
    Index("jobs_of_owner", "owner", "created", "id"),
    Index("jobs_ended", "ended"),
)

owners = Table(
    "owners",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("finish", Double, nullable=False),  # the turn that its next job would have if it never paused
)

repeats = Table(  # what was submitted under which name of the client's
    "repeats",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),  # SHA-256, hex
    Column("body", String(64), nullable=False),  # SHA-256, hex
    Column("job", String(64), ForeignKey("jobs.id"), nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("beat", Double, nullable=False),  # seconds since 1970
)

pictures = Table(
    "pictures",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("job", String(64), ForeignKey("jobs.id")),  # None: an upload
    Column("index", Integer, nullable=False),
    Column("seed", BigInteger),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("file", Text, nullable=False, unique=True),
    Column("sha256", String(64), nullable=False),
    Column("model", Text),
    Column("prompt", Text, nullable=False),  # JSON
    Column("words", Text, nullable=False),  # the prompt as it is searched
    Column("starred", Boolean, nullable=False),
    Column("rating", Integer),
    Column("created", Double, nullable=False),
    Index("pictures_of_owner", "owner", "created", "id"),
    Index("pictures_of_job", "job", "index"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the secret, hex; see serve/keys.py
    Column("metadata", String(16), nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("budget", Double, nullable=False),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
)
