"""From heatmap to region to radiomics features."""
