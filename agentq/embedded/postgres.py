"""
Embedded PostgreSQL: a cluster of our own in the data folder, durable, on loopback, with passwords.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from signal import SIGINT, SIGQUIT

import psycopg

from agentq.embedded import run_as
from agentq.embedded.binaries import POSTGRES
from agentq.embedded.files import MEGABYTE, require_room
from agentq.embedded.ports import HOST
from agentq.embedded.run_as import RunAs
from agentq.embedded.server import Server, _environment
from agentq.errors import ConfigError

MAJOR = "18"
NEW_CLUSTER_BYTES = 200 * MEGABYTE  # the cluster itself, the first log segments, and some work
CONNECT_TIMEOUT_S = 5
START_BYTES = 48 * MEGABYTE  # three log segments: less, and the first checkpoint stops it

SUPERUSER, OWNER, FLEET = "postgres", "agentq_owner", "agentq_fleet"
DATABASE = "agentq"

# For a small machine that other programs share. Written anew at each start.
CONFIGURATION = """\
# Written by agentq at each start. Your own changes go into postgresql.conf, below the line naming this.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''            # a deep checkout would exceed the 107 bytes of a socket's path
password_encryption = 'scram-sha-256'

# A commit is a promise: what returned is on disk.
fsync = on
synchronous_commit = on
full_page_writes = on

max_connections = 200                   # a dozen processes with a pool of 16 each, and people
shared_buffers = '128MB'                # the hot tables are small; the rest is the system's cache
max_wal_size = '1GB'                    # rare checkpoints; this is also the most that the log takes on disk
random_page_cost = 1.1                  # solid-state disks
max_parallel_workers_per_gather = 0     # our queries are short, and the second core belongs to the agents
io_method = 'sync'                      # spares three processes; our reads come from memory
autovacuum_naptime = '15s'              # ledger rows change often and must not bloat between two rounds
autovacuum_max_workers = 2              # two cores

# Nobody replicates from here: no senders, no launcher, a shorter log.
wal_level = 'minimal'
max_wal_senders = 0
max_logical_replication_workers = 0

timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %u '
log_checkpoints = off
log_min_duration_statement = '2s'
log_parameter_max_length = 0            # statements are ours, their parameters are our users' data
log_parameter_max_length_on_error = 0
log_error_verbosity = 'terse'           # DETAIL lines quote whole rows
"""


class Postgres(Server):
    """
    PostgreSQL 18 with pgvector, from a wheel.

    Two roles work on the database `agentq`: `agentq_owner` owns the schema, `agentq_fleet` is bound by
    row-level security. The superuser's password never leaves `servers.json`.
    """

    name = "postgres"
    process_name = "postgres"
    program = POSTGRES
    # Fast: open transactions are rolled back. Then at once, without a checkpoint.
    stop_signals = (SIGINT, SIGQUIT)

    @property
    def url(self) -> str:
        """The database as the fleet's role."""
        return self._url(FLEET)

    @property
    def admin_url(self) -> str:
        """The database as the role that owns the schema."""
        return self._url(OWNER)

    def _url(self, role: str, database: str = DATABASE) -> str:
        password = self.remembered.password(f"{role}_password")
        return f"postgresql://{role}:{password}@{HOST}:{self.port}/{database}"

    def _noted_pid(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].strip().isdigit() else None

    def _pid_file(self) -> list[str]:
        try:
            return (self.folder / "postmaster.pid").read_text("utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _answers(self) -> bool:
        lines = self._pid_file()
        if len(lines) < 8 or not lines[7].startswith("ready") or lines[0].strip() != str(self.pid):
            return False
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise ConfigError(
                    f"the passwords in {self.remembered.path} are not those of {self.folder}: "
                    "bring back that file, or remove the folder and begin afresh"
                ) from None
            return False
        return True

    def _found(self, runner: RunAs) -> None:
        version = self.folder / "PG_VERSION"
        if version.is_file():
            self._check_cluster(version.read_text("ascii").strip())
            require_room(self.folder, START_BYTES)
            return
        require_room(self.folder, NEW_CLUSTER_BYTES)
        # Beside it first: a cluster that was interrupted while being made must not be taken for one.
        scratch = self.folder.with_name("postgres.new")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        self._initdb(scratch, runner)
        with (scratch / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\ninclude = 'agentq.conf'  # written by agentq at each start\n")
        runner.own(scratch)
        scratch.rename(self.folder)

    def _check_cluster(self, major: str) -> None:
        if major != MAJOR:
            raise ConfigError(
                f"{self.folder} was made by PostgreSQL {major}, this is {MAJOR}: dump it with the old one "
                "and restore it, or name another folder with AGENTQ_DATA_DIR"
            )
        if not self.remembered.knows(f"{SUPERUSER}_password"):
            raise ConfigError(
                f"{self.remembered.path}, which held the passwords of {self.folder}, is gone: "
                "bring it back, or remove the folder and begin afresh"
            )

    def _initdb(self, scratch: Path, runner: RunAs) -> None:
        assert self._executable is not None
        maker = RunAs() if runner.uid is None else run_as.named()
        if maker.uid is None and not run_as.has_name(os.geteuid()):
            raise ConfigError(
                f"PostgreSQL needs a name for user {os.geteuid()} to make its files: add one to /etc/passwd, "
                "or set AGENTQ_DATABASE_URL"
            )
        maker.own(scratch)
        command = [
            str(self._executable.with_name("initdb")),
            f"--pgdata={maker.working_folder(scratch)}",
            f"--username={SUPERUSER}",
            "--auth=scram-sha-256",
            "--pwfile=/dev/stdin",
            "--encoding=UTF8",
            # The built-in provider sorts alike everywhere; a system's locale may change under an index.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        # A file without a name: a pipe of root's could not be opened again by another user.
        with tempfile.TemporaryFile("w+", dir=scratch.parent) as password:
            password.write(self.remembered.password(f"{SUPERUSER}_password") + "\n")
            password.seek(0)
            if maker.uid is not None:
                os.fchown(password.fileno(), maker.uid, maker.uid)
            made = subprocess.run(
                command,
                cwd=scratch,
                stdin=password,
                capture_output=True,
                text=True,
                check=False,
                env=_environment(),
                umask=0o077,
                **maker.identity,
            )
        if made.returncode != 0:
            shutil.rmtree(scratch, ignore_errors=True)
            raise self._refusal("initdb", "\n".join(made.stderr.splitlines()[-8:]))

    def _prepare(self, port: int, runner: RunAs) -> None:
        path = self.folder / "agentq.conf"
        path.write_text(CONFIGURATION.format(host=HOST, port=port), "utf-8")
        path.chmod(0o600)
        runner.own(path)
        # Nothing of ours runs in this folder, so a file that names a living process names a stranger.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _command(self, runner: RunAs) -> list[str]:
        return [str(self._executable), "-D", runner.working_folder(self.folder)]

    def _passes_by_itself(self, why: str) -> bool:
        # After a SIGKILL the old backends hold the shared memory until they notice.
        return super()._passes_by_itself(why) or "pre-existing shared memory block" in why

    def _welcome(self) -> None:
        self.version = ".".join(re.findall(r"\d+", self.version)[:2])
        with self._connect("postgres") as connection:
            pq = connection.pgconn
            verifiers = {
                f"{role.removeprefix('agentq_')}_verifier": pq.encrypt_password(
                    self.remembered.password(f"{role}_password").encode(), role.encode(), b"scram-sha-256"
                ).decode()
                for role in (OWNER, FLEET)
            }
            connection.execute(_sql("roles"), verifiers)
            if connection.execute(_sql("find_database")).fetchone() is not None:
                return
            connection.execute(_sql("create_database"))
        with self._connect(DATABASE) as connection:
            connection.execute(_sql("database"))

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            self._url(SUPERUSER, database),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            # Binds here, not in the server: `alter role` takes no parameters.
            cursor_factory=psycopg.ClientCursor,
        )


def _sql(name: str) -> bytes:
    return resources.files("agentq.embedded").joinpath("sql", f"{name}.sql").read_bytes()
