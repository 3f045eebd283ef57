// Shows the API with Swagger UI, which sends requests, too.

import { showDescription } from "./description.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const followColourScheme = () =>
  document.documentElement.classList.toggle("dark-mode", dark.matches);
followColourScheme();
dark.addEventListener("change", followColourScheme);

const MOST_HIGHLIGHTED = 50_000; // characters; the colours of a bundle's report would take seconds

/** A plugin that shows long responses without colours. */
const plainWhereLong = ({ React, getComponent }) => ({
  wrapComponents: {
    SyntaxHighlighter: (Highlighted) => (props) => {
      const isLong = props.children?.length > MOST_HIGHLIGHTED;
      return React.createElement(isLong ? getComponent("PlainTextViewer") : Highlighted, props);
    },
  },
});

showDescription((spec, domNode) =>
  SwaggerUIBundle({ spec, domNode, deepLinking: true, validatorUrl: null, plugins: [plainWhereLong] }),
);
