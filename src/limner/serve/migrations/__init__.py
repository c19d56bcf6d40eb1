"""How a database of any Limner before becomes one of this: Alembic's scripts, run when a store is opened.

The whole way is one transaction, also in SQLite: after a power cut the database is as it was before.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from limner.errors import EngineError
from limner.serve.database import version
from limner.serve.tables import metadata

FOLDER = Path(__file__).parent


def migrate(connection: Connection) -> None:
    """Bring a database to the newest version there is, within the transaction of `connection`. Raises
    EngineError for one that a newer Limner has written, or another program."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = version(connection)
    if current is None and (others := set(inspect(connection).get_table_names()) & set(metadata.tables)):
        raise EngineError(
            f"the database has tables of another program ({', '.join(sorted(others))}); give Limner a "
            "database of its own"
        )
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise EngineError(
            f"the database was written by a newer Limner (its version is {current}, the newest known here is "
            f"{scripts.get_current_head()}); install that one again, or start with another database"
        )
    command.upgrade(config, "head")
