"""The built-in generator of sentence pairs, for training a first model without any files."""

GENERATOR = (
    "435644f71f7a93e1bb4748ea92ec5960bb7927cf5616387577eb9ba1716d8c0c",
    "0e2c0d2feaa4603b0d16451e28d8afa06f1217642e2ba4f0ec9a1640bbed21f5",
    "39c3135bc8e69ea992c36d7f954afcba7cb7194d9751b6d3519a0ccd30a3a0dc",
    "a91efa9f37fa7aec834e573e6191853e6e71382493dd06d6693ed2dcac44503a",
    "002d1107fd44d0263b4e07dee87a7c31a98ee81915e3abb7bee0dafd2a61e046",
    "aadc47d87b9f974d6fd236f1bd8837399beaa9f5a6572bd20fa97f9b98856366",
)
"""Identifies the generator in fingerprints and cache keys.

These are the SHA-256 of its files when this was written, and stay as they are while its pairs do, so that caches and
runs survive an edit of its code. Replace them when the pairs change (`tests/unit/test_demo.py` holds their hash).
"""

EARLIER_GENERATORS = (
    (
        "435644f71f7a93e1bb4748ea92ec5960bb7927cf5616387577eb9ba1716d8c0c",
        "130757a5f52a57a3cb945ac147daeddfad0706a8162fe77a990fe21fddc47186",
        "48556cccdee0ae95e730edcf3250fa4bb17543615a21bf26baa77a8d154edfcf",
        "f952aee58f79cc059bdbd8f92410ac6777bb8f0a1c4328336f3fdc386cb725bc",
        "002d1107fd44d0263b4e07dee87a7c31a98ee81915e3abb7bee0dafd2a61e046",
        "e37d562ee339208fb8e4b3a6ebc19094fc1187d944262af8fa466f1902af5c93",
    ),
    (  # mtkit 0.1.0
        "51cd6533aa0f7a8c28a8dcdc33031070327df152fddb7def696a3202f586290f",
        "f4c1d99beb2bf6d9bd5b39ecdcd482f323ea9b8e592f902cd30de878817e839f",
        "518d39d0de74b3a41475d521842c51bfef7e89fe2dc856bbebdd5ed9ad28e964",
    ),
)
"""Identities under which earlier versions of mtkit knew the same pairs."""
