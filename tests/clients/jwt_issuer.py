"""An issuer of tokens, by PyJWT: jwt_issuer.py <JSON>.

`keys` are made, each with its `kid` and `alg`; `tokens` are signed, each with the `key` of this place and its `claims`; times count from now. Prints the
public keys as a JWKS and the tokens, in their order.
"""

import json
import sys
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

KINDS = {
    "RS": lambda alg: rsa.generate_private_key(65537, 2048),
    "PS": lambda alg: rsa.generate_private_key(65537, 2048),
    "ES": lambda alg: ec.generate_private_key(ec.SECP384R1() if alg == "ES384" else ec.SECP256R1()),
    "Ed": lambda alg: ed25519.Ed25519PrivateKey.generate(),
}

asked = json.loads(sys.argv[1])
keys, jwks = [], []
for key in asked["keys"]:
    private = KINDS[key["alg"][:2]](key["alg"])
    public = jwt.get_algorithm_by_name(key["alg"]).to_jwk(private.public_key(), as_dict=True)
    keys.append(private)
    jwks.append({**public, "kid": key["kid"], "use": "sig", "alg": key["alg"]})

now = int(time.time())
tokens = []
for token in asked["tokens"]:
    claims = {name: now + value if name in ("exp", "nbf") else value for name, value in token["claims"].items()}
    key = asked["keys"][token["key"]]
    headers = {"kid": token.get("kid", key["kid"])}
    tokens.append(jwt.encode(claims, keys[token["key"]], algorithm=key["alg"], headers=headers))
print(json.dumps({"jwks": {"keys": jwks}, "tokens": tokens}))
