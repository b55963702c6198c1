"""Problem text -> tokens -> batches.

errors.py            DataError: what was received, the rule, what to do
files.py             find(name): downloaded data files, wherever they are kept
tokenizer.py         text <-> token ids; train_tokenizer.py: byte-level BPE of one's own
problems.py          Prompt (what a search may see) and Problem (with its checker), by name
prompts.py           the same problems few-shot or as a chat
game24.py            Game of 24: puzzles, splits, random legal play; game24_checker.py: the rules
gsm8k.py             GSM8K: rows, splits; gsm8k_checker.py: the number that a text ends with
math500.py           MATH; math_checker.py, math_worker.py: formulas, compared by math-verify
grade_school.py      generated word problems; grade_school_templates.py, grade_school_words.py
documents.py         text sources -> batches of tokens and loss masks [B, T]; packing.py: windows
synthetic.py         generated tasks: copying, induction, recall; listops.py: lists of digits
sources.py           all text sources by type
chat.py              chats as text and tokens; json_rows.py: JSON lines with typed fields
attributes.py        graded answers (HelpSteer, SteerLM); preferences.py: pairs of answers
answer_rows.py       chats, graded answers and pairs -> rows of tokens; chat_sources.py: as text
search_record.py     SearchRecord: one searched game; records.py: the files of them
record_text.py       texts of token runs; records in the tokens of another tokenizer
record_statistics.py counts, intervals and histograms of records (proportions.py: Wilson)
record_tables.py     records as JSON lines and Parquet
hybrid.py            records -> batches of policy, value and text; record_rows.py: their rows
mixture.py           shuffled, weighted, resumable batches of rows in memory
builders/            tfds datasets (ArrayRecord, without TensorFlow)

docs/data.md describes it. Nothing here needs JAX: batches are dictionaries of numpy arrays, and
iterators are grain's.
"""
