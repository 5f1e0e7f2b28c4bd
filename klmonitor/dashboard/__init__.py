"""One page that shows runs: live from `server`, as a file from `document`, as TensorBoard's tab.

`columns` keeps a run as columns of numbers, `source` fills them from a record while it grows,
`answers` is what the page asks for, the same to every host. Nothing here needs torch.
"""
