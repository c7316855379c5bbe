"""Codecs, one per file. The id in a record header is a promise for ever; ids are never reused.

| id | codec | |
|---|---|---|
| 0 | raw | the chunk as it is; also what any codec falls back to |
| 1 | lz4 | one lz4 block, without a frame |
| 2 | zstd | one zstd frame that states its content size |
| 3 | pipeline | several of these, one after the other; the payload says which |
| 4 | planes | 16- and 32-bit elements as planes of bytes; a stage |
| 5 | layout | elements in another order; a stage |
| 6 | budget | one of several, chosen per chunk; a record's header has the chosen one's id |
| 7 | zstd_dict | one zstd frame, its dictionary beside the records by its number |
| 16 | quantise | keys and values in few bits; lossy |
| 17 to 31 | | quantisers |
| 1024 and up | | third parties; below is kvtier's |
"""
