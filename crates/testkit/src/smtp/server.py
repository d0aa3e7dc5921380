"""An SMTP server for tests: aiosmtpd, which insists on TLS and a password, and misbehaves when it is told to.

It writes what happens as lines of JSON, and reads what to do wrong as lines of JSON: `{"do": …, "to": …, "times": …}`.
It ends with its input.
"""

import asyncio
import email
import email.policy
import json
import logging
import ssl
import sys
import warnings

from aiosmtpd.smtp import SMTP, AuthResult


def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


class Misbehaviour:
    """What is done wrong: to whom (to all if nobody is named, to a domain if it begins with @), and how often (until told
    otherwise without a number)."""

    def __init__(self):
        self.what, self.to, self.times = None, None, None

    def set(self, what, to, times):
        self.what, self.to, self.times = what, to, times

    def now(self, what, to=None):
        if self.what != what or self.times == 0:
            return False
        if self.to is not None and self.to != to and not (self.to.startswith("@") and (to or "").endswith(self.to)):
            return False
        if self.times is not None:
            self.times -= 1
        tell("misbehaved", what=what)
        return True


misbehaviour = Misbehaviour()


def part(message, kind):
    found = message.get_body((kind,))
    return found.get_content() if found else None


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if misbehaviour.now("refuse-recipient", address):
            return "550 5.1.1 <%s>: nobody of that name" % address
        if misbehaviour.now("refuse-for-now", address):
            return "451 4.7.1 <%s>: not now" % address
        if misbehaviour.now("defer-recipient", address):
            return "454 4.7.1 <%s>: Relay access denied" % address
        if misbehaviour.now("shut-out-recipient", address):
            # The answer goes first.
            asyncio.get_running_loop().call_later(0.05, server.transport.close)
            return "421 4.7.0 <%s>: not now, goodbye" % address
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_MAIL(self, server, session, envelope, address, options):
        if misbehaviour.now("refuse-sender"):
            return "553 5.7.1 not your address"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_DATA(self, server, session, envelope):
        to = envelope.rcpt_tos[0]
        if misbehaviour.now("refuse-message", to):
            return "554 5.7.1 this looks like spam"
        if misbehaviour.now("hang-after-message", to):
            await asyncio.Event().wait()
        if misbehaviour.now("dawdle-after-message", to):
            await asyncio.sleep(5)
        raw = bytes(envelope.content)
        message = email.message_from_bytes(raw, policy=email.policy.default)
        tell(
            "mail",
            connection=server.number,
            tls=server.is_encrypted(),
            user=session.auth_data.decode() if session.auth_data else None,
            envelope_from=envelope.mail_from,
            envelope_to=envelope.rcpt_tos,
            headers=[[name, str(value)] for name, value in message.items()],
            defects=[str(defect) for each in message.walk() for defect in each.defects],
            type=message.get_content_type(),
            text=part(message, "plain"),
            html=part(message, "html"),
            raw=raw.decode("utf-8", "replace"),
        )
        if misbehaviour.now("drop-after-acceptance", to):
            server.transport.abort()
        if misbehaviour.now("hang-after-acceptance", to):
            await asyncio.Event().wait()
        return "250 2.0.0 Ok"


class Server(SMTP):
    count = 0

    def __init__(self, options, context):
        self.accounts = {options["user"]: options["password"]}
        self.implicit = options["tls"] == "implicit"
        starttls = options["tls"] == "starttls"
        Server.count += 1
        self.number = Server.count
        super().__init__(
            Handler(),
            hostname="localhost",
            enable_SMTPUTF8=options["utf8"],
            tls_context=context if starttls else None,
            require_starttls=starttls,
            authenticator=self.check,
            auth_required=True,
            # aiosmtpd knows of no TLS but its own STARTTLS.
            auth_require_tls=starttls,
        )

    def is_encrypted(self):
        return self.implicit or self._tls_protocol is not None

    def check(self, server, session, envelope, mechanism, data):
        user, password = data.login.decode(), data.password.decode()
        good = self.accounts.get(user) == password and not misbehaviour.now("refuse-password")
        tell("password", user=user, good=good, tls=self.is_encrypted(), mechanism=mechanism)
        return AuthResult(success=good, handled=good, auth_data=data.login)

    async def _handle_client(self):
        tell("connection", connection=self.number)
        if misbehaviour.now("hang-at-greeting"):
            await asyncio.Event().wait()
        await super()._handle_client()

    async def smtp_DATA(self, arg):
        to = self.envelope.rcpt_tos[0] if self.envelope.rcpt_tos else None
        if misbehaviour.now("drop-in-message", to):
            await self.push("354 go on")
            await self._reader.readline()
            self.transport.abort()
            return
        await super().smtp_DATA(arg)


async def obey(reader):
    while line := await reader.readline():
        order = json.loads(line)
        misbehaviour.set(order["do"], order["to"], order["times"])
        tell("obeyed")


async def main():
    options = json.loads(sys.argv[1])
    context = None
    if options["tls"] != "none":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options["certificate"], options["key"])
    loop = asyncio.get_running_loop()
    implicit = context if options["tls"] == "implicit" else None
    listening = await loop.create_server(lambda: Server(options, context), "127.0.0.1", options["port"], ssl=implicit)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tell("listening", port=listening.sockets[0].getsockname()[1])
    await obey(reader)


# It has opinions on what is done to it here on purpose.
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
asyncio.run(main())
