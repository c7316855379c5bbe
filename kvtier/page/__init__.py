"""Reports and live pages: `plot` says what is drawn, `document` makes one HTML file of it that loads nothing.

`uplot/` is uPlot 1.6.32 as its authors ship it (github.com/leeoniya/uPlot, MIT); `page.js` is the little that stands between.
"""
