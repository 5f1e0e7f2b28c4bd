// Starts the page on the data that this file carries.
"use strict";
KLM.start(KLM.embedded(JSON.parse(document.getElementById("klm-data").textContent)));
