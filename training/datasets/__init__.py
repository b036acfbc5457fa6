"""The data sets that the kit builds: emoji with captions, which ship in part (emoji64.tar), and photographs."""
