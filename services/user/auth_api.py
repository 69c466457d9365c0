"""Handlers of ``AuthService`` and ``UserService``."""

from __future__ import annotations

from strandline.user.v1 import auth_service_pb2 as pb
from strandline.user.v1 import user_pb2

from services.runtime.call import Call
from services.user.registration import Registration
from services.user.sign_in import SignIn
from services.user.signing import TokenSigner


class AuthHandlers:
    """Signing up and in."""

    def __init__(self, registration: Registration, sign_in: SignIn, signer: TokenSigner) -> None:
        self._registration = registration
        self._sign_in = sign_in
        self._signer = signer

    async def register(self, request: pb.RegisterRequest, call: Call) -> pb.RegisterResponse:
        await self._registration.register(request.email, request.password, request.given_name, request.family_name)
        call.response_headers["strandline-http-status"] = "202"  # accepted: the mail says what came of it
        return pb.RegisterResponse()

    async def verify_email(self, request: pb.VerifyEmailRequest, call: Call) -> pb.VerifyEmailResponse:
        await self._registration.verify(request.token)
        return pb.VerifyEmailResponse()

    async def login(self, request: pb.LoginRequest, call: Call) -> pb.LoginResponse:
        tokens = await self._sign_in.login(request.email, request.password)
        return pb.LoginResponse(
            access_token=tokens.access_token, refresh_token=tokens.refresh_token, expires_in=tokens.expires_in
        )

    async def refresh(self, request: pb.RefreshRequest, call: Call) -> pb.RefreshResponse:
        tokens = await self._sign_in.refresh(request.refresh_token)
        return pb.RefreshResponse(
            access_token=tokens.access_token, refresh_token=tokens.refresh_token, expires_in=tokens.expires_in
        )

    async def logout(self, request: pb.LogoutRequest, call: Call) -> pb.LogoutResponse:
        await self._sign_in.logout(request.refresh_token)
        return pb.LogoutResponse()

    async def get_jwks(self, request: pb.GetJwksRequest, call: Call) -> pb.GetJwksResponse:
        keys = [
            pb.Jwk(kty="OKP", crv="Ed25519", x=key.x, kid=key.kid, alg="EdDSA", use="sig")
            for key in self._signer.public_keys
        ]
        return pb.GetJwksResponse(keys=keys)


class UserHandlers:
    """What a person may do with their own user."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration

    async def get_me(self, request: pb.GetMeRequest, call: Call) -> pb.GetMeResponse:
        person = await self._registration.person(call.actor)
        user = user_pb2.User(
            name=f"users/{person.user_id}",
            user_id=person.user_id,
            email=person.email,
            given_name=person.given_name,
            family_name=person.family_name,
            email_verified=True,  # nobody has a token without it
        )
        user.create_time.FromDatetime(person.create_time)
        return pb.GetMeResponse(user=user)
