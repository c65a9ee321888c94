"""How the layers are made fast on NumPy; every tuning constant is in `cuts`.

How much longer a training step takes without each of them, on two cores, for the model in benchmarks/ (or the poems'
best recipe) that slows down most:

    reused memory (workspace)                                            33 %   report
    threads in the loss                                                  59 %   report
    threads in an LSTM's walks through time                              13 %   char
    threads in an LSTM's products over all rows                           9 %   best recipe
    an LSTM's slopes for many rows at once                               10 %   char
    ... in blocks that fit a cache                                       12 %   char
    transposed copies of weights                                          8 %   word
    rows with the same id summed together, without np.add.at             14 %   char
    the softmax divided in narrow factors, its maximum rarely subtracted  5 %   report
    threads that copy the loss's weights                                  3 %   word
    a dropout mask in blocks, and in threads                              5 %   examples/char_lstm.py
    an optimizer's update in blocks, and in threads                       4 %, 3 %   best recipe
"""
