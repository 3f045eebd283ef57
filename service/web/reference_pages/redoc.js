// Shows the API with Redoc, for reading and printing.

import { showDescription } from "./description.js";

// Its search needs a worker from a blob, which the page's policy forbids; all is on one page.
const options = {
  disableSearch: true,
  hideDownloadButton: true,
  nativeScrollbars: true,
  theme: {
    // Redoc's own have too little contrast to read, as axe-core measures it.
    colors: { text: { secondary: "#5a5f62" }, responses: { error: { tabTextColor: "#ff9b9b" } } },
    typography: { code: { color: "#b3261e" } },
  },
};

showDescription((spec, place) => Redoc.init(spec, options, place));
