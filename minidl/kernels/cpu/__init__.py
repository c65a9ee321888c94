"""How the layers are made fast on NumPy; every tuning constant is in `cuts`.

How much longer a training step takes without each, on two cores, for the model of benchmarks/ (or of the poems' best
recipe) that loses most:

    memory that is used again (workspace)                                33 %   report
    threads in the loss                                                  59 %   report
    threads in an LSTM's walks through time                              13 %   char
    threads in an LSTM's products of all rows                             9 %   best recipe
    an LSTM's slopes of many rows at once                                10 %   char
    ... in blocks that a cache holds                                     12 %   char
    weights turned round for a product                                    8 %   word
    rows of one id summed together, not by np.add.at                     14 %   char
    the loss divided in its narrow factors, its maximum seldom taken      5 %   report
    threads in the copy of the loss's weights                             3 %   word
    an optimizer's rule in blocks, and by threads                         4 %, 3 %   best recipe
"""
