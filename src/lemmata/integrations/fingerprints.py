"""The releases of transformers that were read, and the fingerprints of the functions that the swaps replace.

``tests/fingerprints.py`` writes this file.
"""

RELEASES = (
    "5.10.1",
    "5.10.2",
    "5.10.4",
    "5.11.0",
    "5.12.0",
    "5.12.1",
    "5.13.0",
    "5.13.1",
    "5.14.0",
    "5.14.1",
    "5.15.0",
    "5.15.1",
    "5.16.0",
    "5.16.1",
    "5.17.0",
    "5.18.0",
    "5.19.0",
    "5.20.0",
    "5.20.1",
    "5.20.2",
    "5.21.0",
    "5.21.1",
    "5.22.0",
    "5.22.1",
    "5.22.2",
    "5.23.0",
    "5.24.0",
)
FUNCTIONS = {
    "DeepseekV4HyperConnection.forward": (
        "dec1bd8a49741277",
        "094042e18f2af2ec",
    ),
    "DeepseekV4UnweightedRMSNorm.forward": ("08c50f9bfacacd6e",),
    "DeepseekV4DecoderLayer.forward": ("afcabd25bec3aac9",),
    "DeepseekV4HyperHead.forward": ("c4a6eaea8515a877",),
    "DeepseekV4CSACompressor.forward": (
        "a3f15a9fd76ea173",
        "fc722342c6181483",
    ),
    "DeepseekV4HCACompressor.forward": (
        "c366fa13bef22976",
        "02f7f99765faa372",
    ),
    "DeepseekV4RMSNorm.forward": (
        "9635bcd843f309a0",
        "eef4e978a32aa4a4",
    ),
    "apply_rotary_pos_emb": ("0049d859e136a1fb",),
    "DeepseekV4HCACache.update": ("ba32a448619a8402",),
    "DeepseekV4HCACache.store_compression_weights": ("37883df49405f36b",),
    "DeepseekV4HCACache.update_compressor_states": ("05750fd469915493",),
    "DeepseekV4CSACache.update_overlap_state": ("60bf0d56334f3e6e",),
    "DeepseekV4Indexer.forward": (
        "05abeccc4aa219fb",
        "f24a352a61869ed7",
    ),
    "DeepseekV4IndexerScorer.forward": ("51e659a5a9203de6",),
    "DeepseekV4Attention.forward": (
        "89fa41d3d79bda29",
        "3cce874c98c6562a",
    ),
    "eager_attention_forward": ("851d9e1cba8b8e8c",),
    "repeat_kv": ("317a4b2156579031",),
    "DeepseekV4Model.forward": (
        "956d301589e1f6e8",
        "a9e5533ea05978b7",
        "aabdbe8011a536cf",
    ),
}
