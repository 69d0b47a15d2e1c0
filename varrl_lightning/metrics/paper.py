"""What the paper reports (VAR RL Done Right, arXiv 2601.02256): Tables 1 to 5, to set one's own numbers beside."""

from __future__ import annotations

Rows = dict[str, tuple[float, ...]]
"""A table: what was measured, and a number for each column."""

SOURCE = "arXiv 2601.02256"
"""Where the rows are from."""
CVTG_COLUMNS = ("Word Accuracy", "NED", "CLIPScore")
"""Columns of `TABLE_1`."""
HPSV3_CATEGORIES = (
    "Characters",
    "Arts",
    "Design",
    "Architecture",
    "Animals",
    "Natural Scenery",
    "Transportation",
    "Products",
    "Plants",
    "Food",
    "Science",
    "Others",
)
"""Columns of `TABLE_2` behind its first, the mean."""

TABLE_1: Rows = {
    "FLUX.1 dev": (0.4965, 0.6879, 0.7401),
    "SD3.5 Large": (0.6548, 0.8470, 0.7797),
    "AnyText": (0.1804, 0.4675, 0.7432),
    "TextDiffuser-2": (0.2326, 0.4353, 0.6765),
    "RAG-Diffusion": (0.2648, 0.4498, 0.6688),
    "3DIS": (0.3813, 0.6505, 0.7767),
    "TextCrafter (FLUX)": (0.7370, 0.8679, 0.7868),
    "TextCrafter (SD3.5)": (0.7600, 0.9038, 0.8023),
    "Seedream 3.0": (0.5924, 0.8537, 0.7821),
    "GPT Image 1 [High]": (0.8569, 0.9478, 0.7982),
    "Qwen-Image": (0.8288, 0.9116, 0.8017),
    "NextFlow": (0.5536, 0.7816, 0.8068),
    "NextFlow-RL": (0.7841, 0.9081, 0.8224),
}
"""CVTG-2K; columns CVTG_COLUMNS."""

# fmt: off
TABLE_2: Rows = {
    "Stable Diffusion v2.0": (-0.24, -0.34, -0.56, -1.35, -0.24, -0.54, -0.32, 1.00, 1.11, -0.01, -0.38, -0.38, -0.84),
    "Stable Diffusion 3": (5.31, 6.70, 5.98, 5.15, 5.25, 4.09, 5.24, 4.25, 5.71, 5.84, 6.01, 5.71, 4.58),
    "Hunyuan": (8.19, 7.96, 8.11, 8.28, 8.71, 7.24, 7.86, 8.33, 8.55, 8.28, 8.31, 8.48, 8.20),
    "Stable Diffusion XL": (8.20, 8.67, 7.63, 7.53, 8.57, 8.18, 7.76, 8.65, 8.85, 8.32, 8.43, 8.78, 7.29),
    "Gemini 2.0 Flash": (9.21, 9.98, 8.44, 7.64, 10.11, 9.42, 9.01, 9.74, 9.64, 9.55, 10.16, 7.61, 9.23),
    "PixArt-Σ": (9.37, 10.08, 9.07, 8.41, 9.83, 8.86, 8.87, 9.44, 9.57, 9.52, 9.73, 10.35, 8.58),
    "CogView4": (9.61, 10.72, 9.86, 9.33, 9.88, 9.16, 9.45, 9.69, 9.86, 9.45, 9.49, 10.16, 8.97),
    "Infinity": (10.26, 11.17, 9.95, 9.43, 10.36, 9.27, 10.11, 10.36, 10.59, 10.08, 10.30, 10.59, 9.62),
    "Playground-v2.5": (10.27, 11.07, 9.84, 9.64, 10.45, 10.38, 9.94, 10.51, 10.62, 10.15, 10.62, 10.84, 9.39),
    "Flux-dev": (10.43, 11.70, 10.32, 9.39, 10.93, 10.38, 10.01, 10.84, 11.24, 10.21, 10.38, 11.24, 9.16),
    "Kolors": (10.55, 11.79, 10.47, 9.87, 10.82, 10.60, 9.89, 10.68, 10.93, 10.50, 10.63, 11.06, 9.51),
    "NextFlow": (8.43, 9.27, 8.00, 7.51, 8.98, 8.34, 8.22, 8.68, 8.70, 8.19, 8.93, 7.75, 8.57),
    "NextFlow-RL": (10.64, 11.72, 10.26, 9.77, 11.16, 10.79, 10.43, 10.77, 10.73, 10.57, 11.18, 9.60, 10.66),
}
# fmt: on
"""HPSv3; columns All and HPSV3_CATEGORIES. For both NextFlow rows All is the mean of the columns; for most others it is not."""

ABLATIONS: Rows = {
    "m of 1024 pixels, K = 2, step 300 (Table 3a)": (0.5741, 0.7871, 0.8038),
    "m of 512 pixels, K = 2, step 300 (Table 3a)": (0.6351, 0.8236, 0.8057),
    "m of 256 pixels, K = 2, step 300 (Table 3a)": (0.6565, 0.8429, 0.8133),
    "m of 128 pixels, K = 2, step 300 (Table 3a)": (0.6677, 0.8501, 0.8142),
    "alpha 1.2, step 400 (Table 3b)": (0.6602, 0.8459, 0.8144),
    "alpha 1.0, step 400 (Table 3b)": (0.6855, 0.8601, 0.8188),
    "alpha 0.8, step 400 (Table 3b)": (0.7051, 0.8673, 0.8172),
    "alpha 0.6, step 400 (Table 3b)": (0.7136, 0.8709, 0.8165),
    "without mask propagation, step 400 (Table 4a)": (0.6855, 0.8601, 0.8188),
    "with mask propagation, step 400 (Table 4a)": (0.7071, 0.8699, 0.8184),
    "fine-grained alternation (Table 4b)": (0.6855, 0.8601, 0.8188),
    "coarse-grained alternation (Table 4b)": (0.6778, 0.8564, 0.8168),
    "K = 1, step 300 (Table 5)": (0.6575, 0.8388, 0.8258),
    "K = 2, step 300 (Table 5)": (0.6821, 0.8505, 0.8287),
    "K = 4, step 300 (Table 5)": (0.6720, 0.8449, 0.8278),
}
"""CVTG-2K; columns CVTG_COLUMNS; all start from NextFlow."""
