"""Experiments: one question a file, answered by one command.

They stand on `trials` (settings that are compared on the same rows and seeds), `draws`
(small corpora out of a large one), `epochs` (one run by hand), `language_model`, and
`page` (what each leaves), `errors`. `results` runs those that docs/results.md shows.
"""
