"""Looking at runs in a browser: `watched` reads a run and keeps up with it, `server` answers a local page, `static`
writes the same page as one file. The page itself is in `page/`: plain HTML, CSS and JavaScript.
"""
