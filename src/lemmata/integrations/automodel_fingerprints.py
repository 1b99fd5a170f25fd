"""The releases of automodel that were read, and the fingerprints of the functions that the swaps replace.

``tests/fingerprints.py`` writes this file.
"""

RELEASES = ("0.7.0",)
FUNCTIONS = {
    "DeepseekV4HyperConnection.forward": ("3166885fb42414b8",),
    "DeepseekV4HyperConnection.compute_weights": ("0c9e8922efc862ef",),
    "dsv4_sinkhorn_normalize": ("4f09011e7a8a56eb",),
    "sinkhorn_normalize_torch": ("8ae1b0aa7060b739",),
    "_rms_norm_last_dim": ("d4ff09fd0a0660d5",),
    "DeepseekV4Indexer.forward": ("ac428458c4dba516",),
    "dsv4_indexer_scores": ("98536e599b8677b3",),
    "indexer_scores_torch": ("054ba9ab14ceca4b",),
    "_apply_partial_rope": ("a9a8f87970541cfd",),
    "_apply_partial_rope_interleaved": ("8ea29ca6010b06f4",),
    "_query_positions": ("192de3c30007f1fd",),
    "dsv4_cp_enabled": ("6ad2cbdba7bf4108",),
    "dsv4_cp_all_gather": ("5ac5b67dd5ac7fbf",),
    "dsv4_cp_rank": ("cb255b7ab8554b45",),
    "dsv4_cp_size": ("4dbf9af2c2dd0802",),
    "_compressed_window_metadata": ("1e4cfae052aeec56",),
    "_pool_windows": ("12efdf64917ec3ef",),
    "_rope_pool_positions": ("9be28d893cfa0995",),
    "dsv4_cp_all_gather_metadata": ("5a092dfa8878672a",),
    "DeepseekV4TrainCache.accumulate_windows": ("793d7ac3b5bf3007",),
    "DeepseekV4TrainCache.update_pool": ("b8b75d0ddda6066e",),
    "_dsv4_kernel_backend": ("3131815e48721738",),
    "DeepseekV4Attention.forward": ("c7eb1d3c01727ffb",),
    "eager_attention_with_sink": ("dfde9d8721d0a432",),
    "repeat_kv": ("e915724668dd9777",),
    "dsv4_sparse_attention": ("cad1151af8db88f9",),
    "sparse_attention_torch": ("5a3b22b37e86c1a6",),
    "build_dsv4_sparse_topk_indices": ("a2e6932636ec6759",),
    "_build_indexer_topk_compressed_mask": ("66c222c4946fdeaf",),
    "DeepseekV4Compressor.forward": ("a3f58f15d3570a2f",),
}
