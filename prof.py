orig = api._choose
timeit(E1(), 258, 16, "ind base")
api._choose = lambda *a: "reference"
timeit(E1(), 258, 16, "ind reference")
timeit(E1(short_conv_width=0), 258, 16, "ind reference noconv")
