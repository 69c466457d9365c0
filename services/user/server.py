"""The process of the user service: ``strandline-user`` serves, ``strandline-user migrate`` updates the schema."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from services.runtime import log_service
from services.runtime.background import keep_running
from services.runtime.bus import Bus
from services.runtime.call import Namespace as Life
from services.runtime.committer import Committer
from services.runtime.database import Database
from services.runtime.errors import Error
from services.runtime.gate import Gate
from services.runtime.server import Server
from services.runtime.startup import serve_or_migrate, wait_for_database
from services.runtime.tokens import TokenVerifier
from services.runtime.upstream import channel
from services.user import store, upkeep
from services.user.access import LocalAccess
from services.user.access_api import AccessHandlers
from services.user.addresses import AddressIndex
from services.user.auth_api import AuthHandlers, UserHandlers
from services.user.deletions import Deletions
from services.user.ledger import SystemLedger, SystemLog
from services.user.mail import Mailer
from services.user.model import SYSTEM
from services.user.namespace_api import NamespaceHandlers
from services.user.passwords import Passwords
from services.user.registration import Registration
from services.user.sessions import RefreshTokens
from services.user.settings import Keys, UserSettings
from services.user.sign_in import SignIn
from services.user.signing import TokenSigner
from services.user.snapshots import SystemSnapshots
from services.user.upstream import EntityData

MIGRATIONS = Path(__file__).parent / "migrations"
_PACKAGE = "strandline.user.v1"


class UserService:
    """Everything that one process consists of, put together."""

    def __init__(self, settings: UserSettings, keys: Keys, system_epoch: str) -> None:
        """*system_epoch* is the life of ``system`` in the database; must be called inside the event loop."""
        self._settings = settings
        self.bus = Bus(settings.nats_url, settings.nats_credentials, settings.tls_dir, "user")
        self.database = Database(settings.database_url)
        self.engine = store.open_engine(settings.database_url)
        self.committer = Committer(self.database, SystemLedger(), self.bus.publish_commit)
        self.mailer = Mailer(settings.smtp_url, settings.mail_from)
        self.entity_channel = channel(settings.entity_address)
        self.system = system = SystemLog(self.committer, Life(SYSTEM, system_epoch))
        addresses = AddressIndex(keys.blind_index)
        passwords = Passwords(keys.pepper)
        signer = TokenSigner(settings.secrets_dir / "signing", settings.token_issuer)
        self.registration = Registration(self.engine, keys.keyring, addresses, passwords, system, self.mailer)
        sign_in = SignIn(self.engine, addresses, passwords, RefreshTokens(keys.refresh), signer, system)
        self.deletions = Deletions(self.database, system, EntityData(self.entity_channel).purge)
        gate = Gate(TokenVerifier(settings.token_issuer, signer.key_set), LocalAccess(self.database))
        handlers: dict[str, object] = {
            f"{_PACKAGE}.AuthService": AuthHandlers(self.registration, sign_in, signer),
            f"{_PACKAGE}.UserService": UserHandlers(self.registration),
            f"{_PACKAGE}.NamespaceService": NamespaceHandlers(self.database, system, self.deletions, keys.page_token),
            f"{_PACKAGE}.AccessService": AccessHandlers(self.database),
            log_service.NAME: log_service.LogHandlers(
                self.database, SystemSnapshots(self.database), log_service.Uncut()
            ),
        }
        self.server = Server(settings)
        for name, service_handlers in handlers.items():
            self.server.add(name, service_handlers, gate.admit)

    async def run(self) -> None:
        """Serve until told to stop, then leave nothing half done."""
        self.bus.start()
        if self._settings.bootstrap_email:
            await self._bootstrap()
        background = [
            asyncio.create_task(keep_running(work))
            for work in (
                partial(upkeep.beat, self.database, self.bus),
                partial(upkeep.sweep, self.database, self.engine),
                self.deletions.run,
            )
        ]
        try:
            await self.server.run()
        finally:
            for task in background:
                task.cancel()
            await self.close()

    async def close(self) -> None:
        """Answer what was submitted, send what waits, and disconnect."""
        await self.committer.drain()
        await self.mailer.close(seconds=1)
        await self.bus.close()
        await self.entity_channel.close()
        await self.engine.dispose()
        await self.database.close()

    async def _bootstrap(self) -> None:
        try:
            await self.registration.ensure_administrator(
                self._settings.bootstrap_email, self._settings.bootstrap_password
            )
        except Error as failure:
            raise RuntimeError(f"the administrator cannot be made: {failure}") from None


async def serve(settings: UserSettings) -> None:
    """Bring the schema up to date if that is this process's task, and serve."""
    keys = Keys.read(settings.secrets_dir)
    (head,) = await wait_for_database(settings, MIGRATIONS, [SYSTEM])
    await UserService(settings, keys, head.epoch).run()


def main() -> None:
    """The console script."""
    serve_or_migrate("user", UserSettings.from_env, serve, MIGRATIONS)


if __name__ == "__main__":
    main()
